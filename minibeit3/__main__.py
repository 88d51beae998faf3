"""`python -m minibeit3`: the command line."""

from minibeit3.cli import app

app(prog_name="minibeit3")
