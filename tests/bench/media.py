"""H.264 for the scripts that measure: a clip made with ffmpeg."""

import os
import subprocess

FPS, SECONDS = 25, 10
RATE = "3880k"  # 3.8 Mbit/s come of it


def make_clip(path, seconds):
    """Writes the test pattern under noise, so that the encoder needs its bits; ten seconds of it, again and again. Returns
    its Mbit/s."""
    once = path + ".once.h264"
    quiet = ["ffmpeg", "-v", "error", "-nostdin", "-y"]
    subprocess.run(
        [*quiet, "-f", "lavfi", "-i", f"testsrc2=size=1280x720:rate={FPS},noise=alls=12:allf=t", "-t", str(SECONDS),
         "-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-bf", "0", "-g", "50",
         "-b:v", RATE, "-maxrate", RATE, "-bufsize", RATE,
         # Else the first key frame is of three times the size of the others, which no running camera makes.
         "-x264-params", "vbv-init=0.3", "-f", "h264", once],
        check=True,
    )
    with open(once, "rb") as file:
        clip = file.read()
    os.remove(once)
    with open(path, "wb") as file:
        for _ in range(-(-seconds // SECONDS)):
            file.write(clip)
    return len(clip) * 8 / SECONDS / 1e6
