"""What the two graphs are called and take: known to who writes, checks and sends them."""

from samtrt.decoders.contract import METADATA_PARAMETERS

FILES = ("prepare.onnx", "decode.onnx")
PREPARE_INPUTS = ("image_embeddings", "mask_input", "has_mask_input")
PREPARED = ("image", "keys", "values", "queries")
DECODE_INPUTS = (*PREPARED, "point_coords", "point_labels", "rows", "columns")
OUTPUTS = ("low_res_masks", "iou_predictions")
FORMAT = "1"  # of inputs and outputs; another one is made anew
METADATA = (METADATA_PARAMETERS, "samtrt.browser_decoder")  # whose values are a file's hash, FORMAT
