"""What kind of noise a stack has: gain and read noise, blur, interference, lines, jitter.

`emdn_deploy.noise.model.estimate` is the whole of it, the other files are its parts.
"""
