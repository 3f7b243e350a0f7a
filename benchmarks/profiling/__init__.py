"""Where the time of an artifact goes: measured times of its layers, beside the roofline's bound of each."""
