"""Run the command line as `python -m pylayers.cli`."""

from pylayers.cli import main

if __name__ == "__main__":
    main()
