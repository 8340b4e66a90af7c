"""The command line: one thin file per verb, each a wrapper of one public function with the same options."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import lowbit
from lowbit.cli.bench import bench
from lowbit.cli.console import print_error
from lowbit.cli.demo import demo
from lowbit.cli.evaluate import evaluate
from lowbit.cli.inspect import inspect
from lowbit.cli.merge import merge
from lowbit.cli.plan import plan
from lowbit.cli.predict import predict
from lowbit.cli.push import push
from lowbit.cli.quantize import quantize
from lowbit.cli.tune import tune
from lowbit.cli.verify import verify
from lowbit.cli.zeroshot import zeroshot
from lowbit.errors import LowbitError


class Verbs(TyperGroup):
    """All verbs: what the user can mend is one line and exit code 2, Ctrl-C is exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that the command line names."""
        try:
            return super().invoke(ctx)
        except LowbitError as error:
            print_error(error)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=Verbs,
    name="lowbit",
    help="Quantize a language model once without data, then fine-tune each task by its outliers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lowbit {lowbit.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _verb in (plan, quantize, tune, zeroshot, merge, evaluate, predict, inspect, verify, push, demo):
    app.command()(_verb)
app.add_typer(bench, name="bench")


def main() -> None:
    """Entry point of the ``lowbit`` command."""
    app()
