from consortium.main import main

main()
