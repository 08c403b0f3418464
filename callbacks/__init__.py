"""Lightning callbacks: perceptual validation scores and pictures in any model."""
