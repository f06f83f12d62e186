"""The style and scripts that each page holds; uplot/ is the library of its charts."""
