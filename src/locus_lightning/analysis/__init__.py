"""Where a model looks: attention over the image, on the ordinary image + question prompt."""
