"""Who may do what in the panel, the API and the commands."""

from appliance.auth.passwords import PasswordError
from appliance.auth.rights import ROLES, Right
from appliance.auth.sessions import LockedOutError, Principal, SignIn, SignInError, resolve, sign_in, sign_out
from appliance.auth.users import UserError

__all__ = [
    "ROLES",
    "LockedOutError",
    "PasswordError",
    "Principal",
    "Right",
    "SignIn",
    "SignInError",
    "UserError",
    "resolve",
    "sign_in",
    "sign_out",
]
