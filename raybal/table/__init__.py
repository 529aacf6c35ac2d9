"""Tables: methods and seeds trained on one pool at equal budgets, and what came out."""
