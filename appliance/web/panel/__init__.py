"""Panel pages: one file a page, a query that returns a view and a function that draws it."""
