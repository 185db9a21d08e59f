"""Operations on arrays, drawn: what they do to a real picture."""
