"""What went wrong with a job or a request as a whole, for readers of Chinese: a sentence on what it means and what to
do, then the core's own in English, which has the details.

Errors come as sentences, from other processes, too, so a kind is known by the words that its sentences share; what is
of no kind here follows a plain "not made".
"""

from __future__ import annotations

import re

_KINDS = (
    (r"not enough memory|out of memory", "内存或显存不足：请选择更小的尺寸或更少的帧数。"),
    (r"^The worker of rank|^The connection between the workers", "执行任务的工作进程中断：它会自动重启，请再试一次。"),
    (r"^(No|The|A) pool of workers", "工作池没有运行或已停止：请在终端用 pab workers start 重新启动。"),
    (r"could not be kept|^The disk that keeps", "文件未能保存，磁盘可能已满：请删除历史中的视频，或腾出空间后再试。"),
    (
        r"is not downloaded|comes without a|is incomplete|no file or folder|no folder '|There is no model|no longer "
        r"here|not here any more|The weights in|carries no trained weights",
        "模型或文件缺失、不完整或已被移走：请按下文重新获取，或改选其他模型或文件。",
    ),
    (r"^The queue is full", "队列已满：请稍后再试。"),
    (r"of your videos are still", "您已有多个视频正在生成或等待：请等其中一个完成，或将其取消。"),
    (r"is being measured already", "该模型正在测量：完成后图表会显示在这里。"),
    (r"^Both sides have the same settings", "左右两侧的设置相同：请为其中一侧改选策略。"),
    (r"^There is no such job", "没有这个任务：它属于其他用户，或提交于工作室重启之前。"),
    (r"^There is no such video", "历史中没有这个视频：可能已被删除。"),
    (r"^The history could not", "历史记录无法读写：如果磁盘已满，请腾出空间后再试。"),
    (r"^Something in the program failed", "程序内部出错：详情见工作室的日志，其他任务不受影响。"),
)
_OTHERWISE = "未能完成，原因如下："


def explained(said: str, language: str) -> str:
    """The core's sentence as it is; for readers of Chinese after one of theirs."""
    if language != "zh" or not said:
        return said
    meaning = next((words for signs, words in _KINDS if re.search(signs, said)), _OTHERWISE)
    return f"{meaning} {said}"
