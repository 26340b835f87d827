"""Not a test: what a program far from our folder does, which test_hub.py starts; prints JSON.

Arguments: our folder, or OWNER/NAME:REF and a zip archive of it; a picture.
"""

import json
import shutil
import socket
import sys
import time
import urllib.request
from contextlib import suppress

import huggingface_hub
import numpy as np
import torch

import metrics  # another package of this name, before ours; those below come after

source, archive, picture = sys.argv[1:]
torch.set_num_threads(1)
if archive:
    torch.hub.download_url_to_file = lambda url, path, **_: shutil.copy(archive, path)
where = {"source": "github", "trust_repo": True, "skip_validation": True} if archive else {"source": "local"}
said = {}


def attempt(name, function, *arguments, **options):
    """Keeps a number, or what is raised."""
    try:
        said[name] = function(*arguments, **options)
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"


network = torch.hub.load(source, "eambnet_lite_para", **where)
said["path"] = [path for path in sys.path if path == sys.modules["eamb"].__path__[0].removesuffix("/eamb")]
scorer = network.scorer(device="cpu", maps=True)
said["score"], said["size"] = scorer.score(picture).score, network.description["image_size"]
scored = torch.hub.load(source, "emotion_lite_para", **where).scorer(device="cpu").score(picture)
said["emotions"] = scored.emotions
said["scores"] = [
    each.error or each.score for each in scorer.score_many([picture, np.zeros((9, 9, 3), np.uint8)])
]

ours = [module for name, module in sys.modules.items() if name.partition(".")[0] in ("eamb", "EAMBNet")]
values = [value for module in ours for value in vars(module).values()]
imported = [str(getattr(v, "__module__", getattr(v, "__name__", ""))).partition(".")[0] for v in values]
said["packages"] = sorted({*imported} - {*sys.stdlib_module_names, "eamb", "EAMBNet", "None", ""})

# Which of these names are now ours?
names = ("datasets", "losses", "metrics", "main", "scripts", "tests", "hubconf")
said["modules"] = {name: getattr(__import__(name), "OTHERS", False) for name in names}
said["metrics"] = sys.modules["metrics"] is metrics

images = torch.ones(1, 3, 64, 64)
load = sys.modules["EAMBNet"].EAMBNet.from_pretrained


def predict(*arguments, **options):
    with torch.inference_mode():
        return load(*arguments, **options)(images).prediction.item()


attempt("downloaded", predict, "someone/stars")
attempt("cached", predict, "someone/stars", local_files_only=True)
attempt("missing", predict, "someone/nothing")
attempt("revision", predict, "someone/stars", revision="old")
attempt("half", predict, "someone/half")
endpoint = huggingface_hub.constants.ENDPOINT
urllib.request.urlopen(f"{endpoint}/stop")  # noqa: S310 - ends the server
with suppress(OSError):
    while True:
        socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2]))).close()
time.sleep = lambda _: None  # the client tries again for 23 seconds
attempt("cached without connection", predict, "someone/stars")
attempt("no connection", predict, "someone/other")
print(json.dumps(said))
