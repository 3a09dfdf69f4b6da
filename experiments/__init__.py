"""From runs to tables: the protocols of the field, sweeps over them, and what comes of the runs."""
