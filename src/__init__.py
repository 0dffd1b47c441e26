"""From a large language model to a small sequential recommender: teacher, student, distillation, experiments."""
