"""Operations on tensors without collectives or parameters: the definition in reference/, faster versions beside."""
