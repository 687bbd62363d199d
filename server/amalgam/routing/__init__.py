"""Which of an alias' targets a request is for: text in, scores out. No model runs here, and nothing is kept."""
