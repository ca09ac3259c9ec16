"""What a reader looks at: views in cells, browsers, curves, pages, the report."""
