"""Text to vectors: question and passage encoders, pooling. Knows nothing about indexes or generators."""
