"""The page that a run is told by: from plain facts to one self-contained HTML file and its charts."""
