"""`python -m thinet_onnx` is the command `thinet-onnx`."""

from thinet_onnx import interrupts


def main() -> None:
    """Run the command line; the entry point of the package."""
    interrupts.start()
    from thinet_onnx import cli  # noqa: PLC0415  loading it takes a moment, too

    cli.main()


if __name__ == "__main__":
    main()
