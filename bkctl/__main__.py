"""`python -m bkctl`, and the one place where an error becomes a line of text and an exit code."""

import os
import sys
from collections.abc import Sequence

import click

from bkctl.cli.app import root_command
from bkctl.cli.exit_codes import ExitCode, exit_code_of, java_shell_code
from bkctl.cli.options import GlobalOptions
from bkctl.errors import BkctlError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name); its exit code."""
    options = GlobalOptions()
    code = _run(sys.argv[1:] if arguments is None else arguments, options)
    return java_shell_code(code) if options.java_exit else code


def _run(arguments: Sequence[str], options: GlobalOptions) -> int:
    root = root_command()
    if "_BKCTL_COMPLETE" in os.environ:  # a shell asks for completions
        root.main(prog_name="bkctl")
    try:
        with root.make_context("bkctl", list(arguments), obj=options) as ctx:
            result = root.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except click.ClickException as error:
        return _report(_usage_message(error), ExitCode.USAGE, type(error).__name__, options)
    except BrokenPipeError:
        # Whoever read our output has left. The interpreter flushes stdout once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.CLOSED_PIPE
    except (KeyboardInterrupt, click.Abort):
        return ExitCode.INTERRUPTED
    except TimeoutError:
        message = f"not done after {options.timeout_s:g} s (--timeout)" if options.timeout_s else "timed out"
        return _report(message, ExitCode.TIMED_OUT, "TimeoutError", options)
    except BkctlError as error:
        return _report(str(error), exit_code_of(error), type(error).__name__, options)
    except OSError as error:
        return _report(_os_message(error), ExitCode.FAILED, type(error).__name__, options)
    return int(result) if isinstance(result, int) else ExitCode.DONE


def _report(message: str, code: int, kind: str, options: GlobalOptions) -> int:
    """Say what went wrong on stderr: one line, with JSON output also as JSON, with -v also from where."""
    if options.verbose:
        import traceback

        traceback.print_exc()
    sys.stderr.write(f"bkctl: {' '.join(message.split())}\n")
    if options.machine_readable_errors:
        import json

        document = {
            "apiVersion": "bkctl/v1",
            "kind": "Error",
            "error": kind,
            "exit_code": int(code),
            "message": message,
        }
        sys.stderr.write(json.dumps(document) + "\n")
    return int(code)


def _usage_message(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "bkctl"
    return f"{message}; see '{path} --help'"


def _os_message(error: OSError) -> str:
    where = f", {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}"


if __name__ == "__main__":
    sys.exit(main())
