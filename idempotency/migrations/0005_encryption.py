"""Give records a column that says by which key they are encrypted."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("idempotency", "0004_callers_and_endpoints")]

    operations = [
        migrations.AddField(
            model_name="idempotencyrecord",
            name="encrypted_by",
            field=models.CharField(
                max_length=16, null=True, verbose_name="encrypted by"
            ),
        )
    ]
