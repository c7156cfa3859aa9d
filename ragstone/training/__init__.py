"""The training loops: retrievers (contrastive) and RAG models (marginal likelihood), one visible loop each."""
