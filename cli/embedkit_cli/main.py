"""The command `embedkit`."""


def main() -> None:
    """Run the command line."""
