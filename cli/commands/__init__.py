"""The verbs, one module a group; `millpond.cli.group` imports a module when one of its verbs is run."""
