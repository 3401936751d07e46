"""What the decoder's ONNX files are called, take and give: known to who writes and reads them.

Tensor names are those of Meta's ``scripts/export_onnx_model.py``. Four contracts: ``samtrt``,
without ``orig_im_size``, because upscaling to the picture belongs to
``transforms.postprocess_masks``; ``meta``, what that script exports; ``cvat``, what CVAT's page
loads; ``sam_hq``, what SAM-HQ's own script exports. (The console reads them without torch.)
"""

CONTRACTS = ("samtrt", "meta", "cvat", "sam_hq")
INPUT_NAMES = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input")
OUTPUT_NAMES = ("low_res_masks", "iou_predictions")
INTERM_EMBEDDINGS = "interm_embeddings"  # the second input of the contract `sam_hq`
ORIG_IM_SIZE = "orig_im_size"  # the last input of all but the contract `samtrt`
META_OUTPUT_NAMES = ("masks", "iou_predictions", "low_res_masks")
EXTRA_METRICS = ("stability_scores", "areas")  # before the last of them, where asked for
BOX_NAMES = ("xtl", "ytl", "xbr", "ybr")  # what `cvat` has after them

# Keys of the file's metadata, by which a decoder is held against an encoder engine.
METADATA_PARAMETERS = "samtrt.parameters_sha256"
METADATA_NOTE = "samtrt.note"

PRODUCER = "samtrt"
SEALED_VERSION = 1  # from this ``model_version`` on, files of ours end in a digest
