"""The style and the scripts of pages, which each page holds; uplot/ is the library of its charts."""
