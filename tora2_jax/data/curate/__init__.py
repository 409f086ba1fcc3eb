"""Raw clips to annotated ones: the paper's section 3.3."""
