"""What is known of nets: their prototxt, Python layers, heads, weights, data layers, and surgery on them."""
