"""Published systems, one folder each: model <- loss <- task <- build <- recipe."""
