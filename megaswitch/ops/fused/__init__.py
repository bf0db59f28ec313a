"""Operations made of few kernels, forward and backward; which library the kernels come from is the caller's choice."""
