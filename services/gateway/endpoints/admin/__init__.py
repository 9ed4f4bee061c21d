"""What operators see of the whole service, and mend: for keys with the scope ``operate``."""
