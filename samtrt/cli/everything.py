"""Segments everything in every picture of a folder; resumes where it was interrupted."""

import argparse
from pathlib import Path

from samtrt.cli.options import ENGINE, PARAMS, Options


def add_options(options: Options) -> None:
    """Adds the command's options."""
    options.add("folder", type=Path, help="pictures, subfolders included")
    options.add("--params", type=Path, required=True, help=PARAMS)
    options.add("--engine", type=Path, help=f"{ENGINE} (default: PARAMS/engine)")
    options.add_backend()
    options.add("--output-dir", type=Path, required=True, help="created where it is missing")
    options.add(
        "--formats",
        nargs="+",
        choices=("json", "png"),
        default=["json", "png"],
        help="COCO JSON, which is always written, and PNG (default: both)",
    )
    options.add("--points-per-side", type=int, default=32, help="of the grid (default: 32)")
    options.add("--points-per-batch", type=int, default=64, help="decoded at once (default: 64)")
    options.add(
        "--pred-iou-thresh",
        type=float,
        default=0.88,
        help="least predicted quality of a mask (default: 0.88)",
    )
    options.add(
        "--stability-score-thresh",
        type=float,
        default=0.95,
        help="least IoU of a mask cut a little higher and lower (default: 0.95)",
    )
    options.add(
        "--box-nms-thresh",
        type=float,
        default=0.7,
        help="of two boxes with a larger IoU one stays (default: 0.7)",
    )
    options.add(
        "--crop-n-layers",
        type=int,
        default=0,
        help="also look at 4, 16, … parts of the picture, for small objects (default: 0)",
    )
    options.add(
        "--min-mask-region-area",
        type=int,
        default=0,
        metavar="PIXELS",
        help="fill smaller holes and remove smaller islands (default: 0)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Segments, and prints what became of the pictures; status 1 where one was skipped."""
    from samtrt.console import one_line
    from samtrt.jobs.folder import segment_folder
    from samtrt.sam import load_sam

    engine = arguments.engine or arguments.params / "engine"
    report = segment_folder(
        load_sam(engine, arguments.params, arguments.backend),
        arguments.folder,
        arguments.output_dir,
        arguments.formats,
        points_per_side=arguments.points_per_side,
        points_per_batch=arguments.points_per_batch,
        pred_iou_thresh=arguments.pred_iou_thresh,
        stability_score_thresh=arguments.stability_score_thresh,
        box_nms_thresh=arguments.box_nms_thresh,
        crop_n_layers=arguments.crop_n_layers,
        min_mask_region_area=arguments.min_mask_region_area,
    )
    print(f"segmented   {len(report.segmented)} pictures, {sum(report.segmented.values())} masks")
    print(f"resumed     {len(report.resumed)} pictures were done before")
    print(f"skipped     {len(report.failed)} files")
    for name, reason in report.failed.items():
        print(f"            {one_line(str(name))}: {reason}")
    print(f"written     {arguments.output_dir}")
    return 1 if report.failed else 0
