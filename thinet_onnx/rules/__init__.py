"""The rule table: one small function for each family of operators, keyed by operator name.

Importing this package fills `RULES`. See `context` for what a rule may say.
"""

from thinet_onnx.rules import elementwise, layout, linear, mixing
from thinet_onnx.rules.context import RULES, Context, Linear, SizeUse

__all__ = ["RULES", "Context", "Linear", "SizeUse", "elementwise", "layout", "linear", "mixing"]
