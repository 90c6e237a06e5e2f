"""`consortium federation`: banks that train one adapter together."""

import typer

from consortium.federation import drafts, enrolment, runs, simulation, views

app = typer.Typer(
    help="Banks that train one adapter together: keys, certificates, the roster that all have signed, and the runs.", no_args_is_help=True
)
for _part in (enrolment, drafts, runs, simulation, views):
    app.add_typer(_part.app)
