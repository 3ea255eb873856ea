"""Find the records of a caller and of an endpoint, the newest first, by indexes."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("idempotency", "0003_steps")]

    operations = [
        migrations.AddField(
            model_name="idempotencyrecord",
            name="route",
            field=models.CharField(max_length=255, null=True, verbose_name="route"),
        ),
        migrations.AddIndex(
            model_name="idempotencyrecord",
            index=models.Index(
                fields=["scope", "created_at"],
                name="idempotency_caller",
                opclasses=("varchar_pattern_ops", "timestamptz_ops"),
            ),
        ),
        migrations.AddIndex(
            model_name="idempotencyrecord",
            index=models.Index(
                fields=["route", "method", "created_at"],
                name="idempotency_endpoint",
                opclasses=(
                    "varchar_pattern_ops",
                    "varchar_pattern_ops",
                    "timestamptz_ops",
                ),
            ),
        ),
    ]
