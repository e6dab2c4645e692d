"""What a person reads after a run: panels, plots and the closing table, all pure functions of its figures."""
