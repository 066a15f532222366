"""Norm of updates"""

import sqlalchemy as sa
from alembic import op

revision = '61b4c7a0d3e5'
down_revision = '554b70dc7448'
branch_labels = None
depends_on = None


def upgrade():
    op.add_column('round', sa.Column('update_norm', sa.Double(), nullable=True))


def downgrade():
    op.drop_column('round', 'update_norm')
