"""Give records a column for the steps of handlers that resume."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("idempotency", "0002_body_compression")]

    operations = [
        migrations.AddField(
            model_name="idempotencyrecord",
            name="steps",
            field=models.TextField(null=True, verbose_name="steps"),
        )
    ]
