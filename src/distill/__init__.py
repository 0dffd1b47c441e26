"""Distillation: what a student learns from a teacher's exported knowledge, and from which samples."""
