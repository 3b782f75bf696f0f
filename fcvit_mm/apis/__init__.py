"""Loading a trained model, predicting, drawing, counting, and stock configs."""
