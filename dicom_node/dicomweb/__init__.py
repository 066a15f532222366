"""DICOMweb: the web services of PS3.18 over what is stored, as routers that know no database."""
