"""The parts of the report: what runs left on disk, tables, figures, what was learned, the page."""
