"""Episodes on held-out initial states: results, tables, videos."""
