"""What a refused command looks like: exit code 2, nothing on standard output, one sentence on standard error, no new file."""

from pathlib import Path

from typer.testing import CliRunner

from thinet_onnx import cli

PREFIX = "thinet-onnx: error: "


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all that a folder holds, links not followed, but for what Python caches of a script."""
    files = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in files}


def sentence(code: int, out: str, err: str) -> str:
    """The message of a command that failed as it should."""
    assert code == 2, (code, out, err)
    assert out == ""
    assert err.endswith("\n")
    (line,) = err.splitlines()
    assert line.startswith(PREFIX)
    message = line.removeprefix(PREFIX)
    assert message == message.strip()
    assert message.endswith(".")
    assert len(message) < 500 or "x" * 200 in message  # long names are told in full
    assert message.isprintable()
    assert "Traceback" not in message
    return message


def run(*arguments: str) -> str:
    """The message of a command, run in this process; what is no ThinetError comes through as it is."""
    outcome = CliRunner().invoke(cli.app, arguments)
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return sentence(outcome.exit_code, outcome.stdout, outcome.stderr)


def names(message: str, *words: str) -> bool:
    """Whether all the words are in the message."""
    return all(word in message for word in words)
