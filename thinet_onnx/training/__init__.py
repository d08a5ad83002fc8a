"""Fine-tuning in PyTorch: a student, a teacher, a loop. `options` and `feeding` need no PyTorch; `finetune` is the door.

data ─ feeding ─▶ student (twin) ─┐
              └─▶ teacher ────────┴─ losses ─▶ loop ─▶ checkpoints, log
"""
