"""Every option and its default, for the command line (opts.py) and for callers that pass a plain dict.

Programs written for the reference pass only the reference's keys, and some bring an ``opts`` module of their own:
so the defaults live here, and no public module imports opts.
"""

DEFAULTS = {
    # what to do
    "mode": "train",
    "finetune": 0,
    "checkpoint_path": "./checkpoint",
    "pth_path": "./checkpoint/BMN_best.pth.tar",
    "resume": "",
    # optimisation
    "training_lr": 0.001,
    "weight_decay": 1e-4,
    "train_epochs": 10,
    "batch_size": 8,
    "step_size": 7,
    "step_gamma": 0.1,
    "seed": 0,
    # data
    "video_info": "data/activitynet_annotations/video_info_new.csv",
    "video_anno": "data/activitynet_annotations/anet_anno_action.json",
    "data_path": "data/activitynet_feature_cuhk/",
    "temporal_scale": 100,
    "feat_dim": 400,
    "num_workers": -1,
    "feature_cache": "auto",
    "feature_cache_dtype": "float32",
    "skip_missing": 0,
    # boundary matching
    "num_sample": 32,
    "num_sample_perbin": 3,
    "prop_boundary_ratio": 0.5,
    # proposals and their evaluation
    "post_process_thread": 8,
    "soft_nms_alpha": 0.4,
    "soft_nms_low_thres": 0.5,
    "soft_nms_high_thres": 0.9,
    "result_file": "./output/result_proposal.json",
    "save_fig_path": "./output/evaluation_result.jpg",
    "save_csv": 1,
    "ground_truth": "",
    "classification_file": "",
    "onnx": "",
    # machine
    "device": "auto",
    "DeviceID": "0",
    "is_distributed": 0,
    "local_rank": 0,
    "world_size": 1,
    "opt_level": "O1",
    "loss_scale": 128.0,
    "profile": "",
}

# Other names of the feature folder, in the order in which they are asked; the first that is given serves.
DATA_PATH_NAMES = ("data_path", "data", "feature_path")


def with_defaults(opt):
    """A new dict: every option of DEFAULTS, with the values of ``opt`` (a dict) where it has them.

    ``data_path`` is the first of ``data_path``, ``data`` and ``feature_path`` that is given.
    """
    complete = dict(DEFAULTS)
    complete.update(opt)
    for name in DATA_PATH_NAMES:
        if opt.get(name):
            complete["data_path"] = opt[name]
            break
    return complete
