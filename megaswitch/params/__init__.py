"""ParamSpec, the one fact per parameter, and what is derived from it; no layer knows a rank."""
