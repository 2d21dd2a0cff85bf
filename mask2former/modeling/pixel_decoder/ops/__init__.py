"""Multi-scale deformable attention: one function, several back ends, and the module around it."""
