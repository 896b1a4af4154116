"""Room 2: an exported model → tokens. Meets the export only on disk, through `edge.json`."""
